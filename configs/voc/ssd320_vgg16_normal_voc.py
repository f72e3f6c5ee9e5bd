# Plain convolutions with a bias, without any normalization. Table 2 has this row at
# optim_wrapper.optimizer.lr=1e-3. The paper says that it does not train at 1e-2.
_base_ = '../_base_/ssd320_voc0712.py'

model = dict(backbone=dict(conv_cfg=dict(type='Conv2d')))
