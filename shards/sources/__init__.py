"""Where people keep ImageNet, or any set of class folders: five layouts, each read as splits of images."""
