"""Measures speed and memory on this machine, for docs/benchmarks.md.

Commands, each `python -m scripts.benchmark.NAME`:

    ops       operators beside plain jnp, XLA's convolution, torchvision and torch
    step      a train step and a detection of the paper's detector beside torchvision's
    profile   where the time of such a step goes, by kind of operation
    explain   explanations of the paper's detector
    constants halves and doubles of the kernels' tuning constants
    loader    images that the training loader reads, with and without worker processes
    start     wheels: their size, and the time of imports and of the first result

`train_step` makes the step of a configuration for `step`, and for scripts.aot.

`viewer_click` and `chromium` are the part of `explain` that needs a browser.

What `ops` is made of:

    layers                   sizes of the paper's ResNet-50
    case                     what is measured: candidates, their peers, cases, tables
    conv_cases, box_cases    the tables: convolutions and layers; RoI pooling and NMS
    timing                   candidates take turns within a process
    fma                      the machine's peak of multiply-adds, by fma_peak.cc
    memory, peak_rss         scratch memory; how far a call raises resident memory
    torch_worker             a process of another interpreter that computes with torch,
    torch_process            what runs in it,
    torch_answers            and how it is spoken to
    markdown                 the tables as text, and their place in the document

What `step` is made of beside these:

    train_step               the step and the detector, as the programs build them
    typical_weights          random weights with offsets, and something to detect
    twin_worker              a process that has torchvision's counterpart of a network,
    torch_twin               what runs in it,
    torch_network            and the network
"""
