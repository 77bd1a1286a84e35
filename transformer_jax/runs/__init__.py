"""The folder of a run: its steps, their manifests, who may write to it, and object stores."""
