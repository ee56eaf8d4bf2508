"""What torch sees, as JSON: its version, its CUDA version or null, whether there is a GPU for it, and the GPUs' names."""

import json

import torch

if __name__ == "__main__":
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.is_available(), names]))
