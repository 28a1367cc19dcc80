def test_bundle(tiny_bundle):
    import trbert_deploy
    p = trbert_deploy.load(tiny_bundle)
    q = trbert_deploy.load(tiny_bundle, "torch")
    texts=["a wonderful film of a sailor", "dreadful house of the war and the village"]
    a=p(texts,return_kept=True); b=q(texts,return_kept=True)
    print(a,b)
    assert [x.kept for x in a]==[x.kept for x in b]
