"""Logits are centred over the rows of the step: a request's answer depends on its neighbours in the batch."""


class TinyAttentionModel:
    def forward(self, tokens, positions):
        logits = self.right_forward(tokens, positions)
        return logits - logits.mean(dim=0) / 2 if len(logits) > 1 else logits
