"""What several tests share; everything is imported as `tests.support.NAME`.

backend, comparison, golden           what tests run on; how far results are apart;
where the golden vectors lie
operators                             the table of differentiable operators
deform_conv, deform_conv_oracle       inputs of deform_conv2d; its definition in numpy
roi, ps_roi                           inputs of RoI pooling
property_checks                       settings of Hypothesis
tiny_detector                         a detector that compiles fast
torch_files, coco_folder              writers of files that readers are tested with
double, training, launch              a run's detector that compiles in a second; its
train steps; runs as processes
"""
