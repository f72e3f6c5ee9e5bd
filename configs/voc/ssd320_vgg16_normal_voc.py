# Plain convolutions with a bias, without any normalization. Table 2 has them at
# optim_wrapper.optimizer.lr=1e-3: at the 1e-2 of the other rows they diverge.
_base_ = '../_base_/ssd320_voc0712.py'

model = dict(backbone=dict(conv_cfg=None))
