"""Reference implementations for the course *Diffusion, Derived*.

Data x_0 is noised to x_t = alpha_t x_0 + sigma_t eps by a Schedule. A Denoiser looks at x_t and
returns a Prediction. A loss trains it, a sampler iterates it, a metric judges the samples. An
exact denoiser (closed form, for a Gaussian mixture) and a learned one are the same type.

    gaussian  schedule  learned_schedule  mixtures    mathematics: the exact truth
    denoiser                                          the hub: Prediction, Condition, Denoiser
    likelihood  losses  samplers  analytic            know only schedules and denoisers:
    solvers  dpm_solver  guidance                     what is minimised, and what is walked
    networks/  autoencoder  first_stage               torch and `gaussian`; know no schedule
    text  clip  lora  controlnet
    latent  inpainting  cascade  unclip  dreambooth   a diffusion of something, beside something
    download  cifar10  data  shape_world  subjects    images, points, scenes and captions,
    captions  oracle  pretrained  wordings            and how to judge them
    language_model  metrics
    interrupts  recorded  borrowed  ranks  checkpoints    what a run needs
    train                                             the loop
    recipes/                                          what is run
    plotting  exercises/  checks  widgets             for notebooks: nothing above imports these

A module imports from lines above its own and from modules to its left. The mathematics, the hub
and what knows only these see no network; the lines from `latent` on do.
"""
