"""The keeper: root, one thread, owns what must not die. It parses no image and believes nobody."""
