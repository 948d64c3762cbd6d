"""What an edited model does, measured, as a page to mail around and as a model card."""
