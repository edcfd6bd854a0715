"""U-SAM: class names in, labelled segmentation masks out (Kundu et al., user-defined semantics for SAM)."""
