"""Ready scripts and manifests for the places where experiments run: Cloud TPU VMs, GKE, Kubeflow, SLURM."""
