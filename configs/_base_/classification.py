# The common part of the classification configs. MMDetection's programs run them, if
# mmpretrain is installed (tools/install.sh --pretrain).
default_scope = 'mmpretrain'
custom_imports = dict(imports=['pws_mmdet.pretrain'], allow_failed_imports=False)
runner_type = 'PWSRunner'

model = dict(
    type='ImageClassifier',
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', loss=dict(type='CrossEntropyLoss', loss_weight=1.0)
    ),
)

val_evaluator = dict(type='Accuracy', topk=1)
test_evaluator = val_evaluator

val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type='EpochSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False),
)
env_cfg = dict(
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)
