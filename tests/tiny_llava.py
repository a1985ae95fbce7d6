"A LLaVA of transformers, small and random."
import torch
from ccd.vqa.llava import conversations as v

def saved(folder, texts, vocabulary, context): # net, tokenizer
    "As transformers itself saves it."
    from transformers import (CLIPVisionConfig, LlamaConfig, LlavaConfig,
                              LlavaForConditionalGeneration)
    tok = v._train_bpe(texts, vocabulary)
    tower = CLIPVisionConfig(hidden_size=24, intermediate_size=48, num_hidden_layers=3,
                             num_attention_heads=2, image_size=32, patch_size=8)
    text = LlamaConfig(vocab_size=len(tok), hidden_size=32, intermediate_size=64,
                       num_hidden_layers=2, num_attention_heads=2,
                       num_key_value_heads=1, max_position_embeddings=context)
    torch.manual_seed(1)
    net = LlavaForConditionalGeneration(LlavaConfig(vision_config=tower, text_config=text,
                                                    image_seq_length=16,
                                                    image_token_index=tok.convert_tokens_to_ids(v._IMAGE_TOKEN))).eval()
    for p in net.parameters(): p.data.add_(0.1 * torch.randn_like(p))
    net.save_pretrained(folder); tok.save_pretrained(folder)
    return net, tok
