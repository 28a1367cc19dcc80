"""``CompactTokens`` in all its forms."""

#: The operator's name, where it is in ONNX graphs, and of which form TensorRT has to know it.
OPERATOR, DOMAIN, PLUGIN_VERSION = "CompactTokens", "trbert_deploy", "1"
