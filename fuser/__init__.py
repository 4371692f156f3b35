"""rooffuse: a torch.compile backend that fuses by a roofline cost model."""
