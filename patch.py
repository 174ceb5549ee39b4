p='starflow_jax/training/inputs.py'
s=open(p).read()
s=s.replace('''    if config.noise == "uniform":
        return deq''','''    if jnp.issubdtype(image.dtype, jnp.floating):
        return image.astype(jnp.float32) + config.noise_std * jax.random.normal(key, image.shape)
    if config.noise == "uniform":
        return deq''')
s=s.replace('''    if config.text is None:
        return condition(drop''','''    if "text" in batch and jnp.issubdtype(batch["text"].dtype, jnp.floating):
        states = jnp.asarray(batch["text"])
        kept = jax.random.uniform(key, states.shape[:1]) >= config.data.label_drop
        return jnp.where(kept[:, None, None], states, 0)
    if config.text is None:
        return condition(drop''')
open(p,'w').write(s)
