_base_ = 'mask_rcnn_r18_fpn_pws_digits.py'

model = dict(
    roi_head=dict(
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead',
            conv_out_channels=64,
            conv_cfg={{_base_.head_conv_cfg}},
        )
    )
)
