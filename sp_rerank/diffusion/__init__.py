"""All that knows diffusers: loading, sampling, schedulers, trajectories, previews, prompt limits."""
