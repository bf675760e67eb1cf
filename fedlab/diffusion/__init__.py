"""Generation by denoising: noise schedules, one objective, samplers and the likelihood bound; plain torch."""
