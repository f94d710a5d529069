"""The names of gatelib.nn and the modules that hold them: type checkers read this, and so does
lazy_loader. A new layer is one line here.
"""

from . import convert as convert
from . import init as init
from .attention import AdditiveAttention as AdditiveAttention
from .attention import DotAttention as DotAttention
from .conv_rnn import ConvGRU2d as ConvGRU2d
from .conv_rnn import ConvLSTM2d as ConvLSTM2d
from .conv_rnn import ConvRNN2d as ConvRNN2d
from .depth import Deep as Deep
from .depth import Dense as Dense
from .depth import Residual as Residual
from .depth import StochasticDepth as StochasticDepth
from .gate import FeatureGate as FeatureGate
from .gate import Gate as Gate
from .gate import interpolate as interpolate
from .gated_conv import GatedConv1d as GatedConv1d
from .gated_conv import receptive_field as receptive_field
from .glu import GLU as GLU
from .glu import GatedMLP as GatedMLP
from .gmlp import AMLPBlock as AMLPBlock
from .gmlp import GMLPBlock as GMLPBlock
from .gmlp import SpatialGatingUnit as SpatialGatingUnit
from .gru import GRU as GRU
from .gru import GRUCell as GRUCell
from .highway import GTrXLGate as GTrXLGate
from .highway import Highway as Highway
from .highway import RecurrentHighway as RecurrentHighway
from .lstm import LSTM as LSTM
from .lstm import LSTMCell as LSTMCell
from .recurrent import Recurrent as Recurrent
from .rnn import RNN as RNN
from .rnn import Jordan as Jordan
from .rnn import RNNCell as RNNCell
from .rnn import SkipRNN as SkipRNN
from .seq2seq import Decoder as Decoder
from .seq2seq import Encoder as Encoder
from .seq2seq import FixedContext as FixedContext
from .seq2seq import Seq2Seq as Seq2Seq
from .stacks import Stack as Stack
from .stacks import VariationalDropout as VariationalDropout
from .stacks import pool as pool
from .vision import ECA as ECA
from .vision import FiLM as FiLM
from .vision import GatedResidualBlock2d as GatedResidualBlock2d
from .vision import SqueezeExcitation as SqueezeExcitation
