"""Generation by denoising: noise laws, one objective, samplers and the likelihood bound; plain torch."""
