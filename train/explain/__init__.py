"""What networks see of an image: `python -m train.explain`.

nodes        what is explained: positions and RoIs, given or found
network      a trained network and what it sees of nodes
run          one or several networks on one image, and the files of that
pictures     the figures
resolutions  receptive fields, and scores, by the size of the image
record       explanation.json
viewer       a page on which one points at a place of the image
"""
