"""Running one program on many devices: the mesh, the rules, the collectives along a sequence."""
