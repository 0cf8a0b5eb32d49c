"""Classifiers, and adapters that make a `Model` of any flax module."""

from robustjax.models.adapters import from_linen as from_linen
from robustjax.models.adapters import from_nnx as from_nnx
from robustjax.models.bound import logits_fn as logits_fn
from robustjax.models.bound import model_fn as model_fn
from robustjax.models.pytorch import from_pytorch as from_pytorch
from robustjax.models.resnet import preact_resnet18 as preact_resnet18
from robustjax.models.resnet import resnet18 as resnet18
from robustjax.models.resnet import resnet20 as resnet20
from robustjax.models.resnet import resnet32 as resnet32
from robustjax.models.resnet import resnet44 as resnet44
from robustjax.models.resnet import resnet50 as resnet50
from robustjax.models.resnet import resnet56 as resnet56
from robustjax.models.resnet import resnet110 as resnet110
from robustjax.models.small import SmallCNN as SmallCNN
from robustjax.models.small import WNLLMnistCNN as WNLLMnistCNN
from robustjax.models.small import small_cnn as small_cnn
from robustjax.models.small import wnll_mnist_cnn as wnll_mnist_cnn
from robustjax.models.trunk import ResNet as ResNet
from robustjax.models.vgg import VGG as VGG
from robustjax.models.vgg import vgg19_bn as vgg19_bn
from robustjax.models.wide_resnet import wide_resnet28_10 as wide_resnet28_10
from robustjax.models.wide_resnet import wide_resnet34_10 as wide_resnet34_10
