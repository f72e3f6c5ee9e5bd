# Plain convolutions with a bias, without any normalization. Table 2 has them at
# optim_wrapper.optimizer.lr=1e-3; at 1e-2, the paper says, they cannot be trained.
_base_ = '../_base_/ssd320_voc0712.py'

model = dict(backbone=dict(conv_cfg=None))
