"""The model asks how many ranks there are and divides by itself what the layers divide already."""


class TinyAttentionModel:
    def __init__(self, config):
        self.right___init__(config)
        self.tp_size = 1
