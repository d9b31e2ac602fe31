"""words: small trained masked language models that ship with the package."""

from erta_integrations.words._demo import WordsDemo, load
from erta_integrations.words._files import find_weights, load_network, read_training, save_network
from erta_integrations.words._model import WordsModel, load_permutations_model, load_words_model
from erta_integrations.words._network import Size, WordsNetwork
from erta_integrations.words._tasks import Permutations, Task, Words, load_words

__all__ = [
    "Permutations",
    "Size",
    "Task",
    "Words",
    "WordsDemo",
    "WordsModel",
    "WordsNetwork",
    "find_weights",
    "load",
    "load_network",
    "load_permutations_model",
    "load_words",
    "load_words_model",
    "read_training",
    "save_network",
]
