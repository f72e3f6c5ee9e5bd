_base_ = 'mask_rcnn_r50_fpn_pws_1x.py'

model = dict(
    roi_head=dict(
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead',
            conv_out_channels=256,
            conv_cfg={{_base_.head_conv_cfg}},
        )
    )
)
