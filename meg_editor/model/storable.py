"""What an edited model does with folders, other bases and the hub."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import HfApi, ModelHubMixin

from meg_editor.config.input_files import short_repr
from meg_editor.edits.change import Change
from meg_editor.edits.conflicts import OnConflict
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.runtime.files import replacing, resolved

if TYPE_CHECKING:
    from meg_editor.model.meg_model import MeGModel
    from meg_editor.model.merging import Reattached


class StorableEdits(ModelHubMixin):
    """Methods of `MeGModel` that read and write folders; each is a function of a module here."""

    def merge(self, folder: str | Path, *, on_conflict: OnConflict = "refuse") -> Change:
        """Add the edits which another folder holds, with their neurons where they serve here.

        Of edits of another base, layer or prompt template the neurons are collected.

        Args:
            on_conflict: see `add`.
        """
        from meg_editor.model.merging import merge

        return merge(cast("MeGModel", self), folder, on_conflict)

    def reattach(
        self, base: CausalLM, tokenizer: Tokenizer | None = None
    ) -> tuple[Any, Reattached]:
        """These edits on another base, such as a fine-tuned one, and what became of each.

        Each neuron is asked there, bare and in the contexts of collection; what does not give the
        target any more is collected anew.

        Args:
            base: an unedited model.
            tokenizer: of it; default: the same.

        Raises:
            ValueError: edits which are found by the hidden states of their base.
        """
        from meg_editor.model.merging import reattach

        return reattach(cast("MeGModel", self), base, tokenizer)

    def export(self, path: str | Path) -> None:
        """Write the edits to a file of JSON lines, which every `--edits` reads.

        Raises:
            ValueError: the name does not end in .jsonl, by which the file is known.
        """
        path = Path(path)
        if path.suffix.lower() != ".jsonl" and not path.is_dir():
            raise ValueError(f"expected a name that ends in .jsonl, got {short_repr(path.name)}")
        lines = [edit.listed for edit in cast("MeGModel", self).edits]
        with replacing(path) as file:
            file.writelines(f"{json.dumps(line, ensure_ascii=False)}\n".encode() for line in lines)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        save_base: bool = False,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        config: Any = None,
        model_card_kwargs: Any = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Save the edits to a folder; see `meg_editor.model.saved.saving.save_pretrained`.

        Args:
            save_base: save the base model too.
            push_to_hub: upload them too, to `repo_id` (default: the folder's name).
            config, model_card_kwargs: of ModelHubMixin; not used.
            push_to_hub_kwargs: those of `push_to_hub`.

        Returns:
            URL of the commit, if uploaded.

        Raises:
            TypeError: another option.
        """
        from meg_editor.model.saved.saving import save_pretrained

        if other := push_to_hub_kwargs.keys() - inspect.signature(self.push_to_hub).parameters:
            raise TypeError(
                f"save_pretrained: expected save_base, push_to_hub, repo_id or an option of "
                f"push_to_hub, got {min(other)}"
            )
        save_pretrained(cast("MeGModel", self), save_directory, save_base=save_base)
        if not push_to_hub:
            return None
        saved = cast("MeGModel", self)._saved[resolved(save_directory)]
        has_base = saved.has_base  # that of an earlier save stays
        name = repo_id or Path(save_directory).name
        return self.push_to_hub(name, save_base=has_base, **push_to_hub_kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        save_base: bool = False,
        commit_message: str = "Upload edits",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        allow_patterns: list[str] | str | None = None,
        ignore_patterns: list[str] | str | None = None,
        delete_patterns: list[str] | str | None = None,
        config: Any = None,
        model_card_kwargs: Any = None,
    ) -> str:
        """Upload the edits to a repository of the hub, which is created if it is missing.

        The folders which it was loaded from, or saved to, stay its own.

        Args:
            save_base: upload the base model too.
            delete_patterns: files to delete from the repository, beside edits uploaded before.
            config, model_card_kwargs: of ModelHubMixin; not used. The other options are of its
                `push_to_hub`.

        Returns:
            URL of the commit, as the hub's library returns it.
        """
        from meg_editor.model.saved.saving import UPLOADED, save_whole

        hub, model = HfApi(token=token), cast("MeGModel", self)
        repo_id = hub.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
        further = [delete_patterns] if isinstance(delete_patterns, str) else delete_patterns or []
        with TemporaryDirectory() as folder:
            with model._changing.taken():
                save_whole(model, folder, save_base)
            return hub.upload_folder(
                repo_id=repo_id,
                repo_type="model",
                folder_path=folder,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
                allow_patterns=allow_patterns,
                ignore_patterns=ignore_patterns,
                delete_patterns=[*UPLOADED, *further],
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load a model saved by `save_pretrained`, from a folder or a repository of the hub.

        Args:
            kwargs: `base`, `tokenizer`, `device` and `runtime` of
                `meg_editor.model.saved.loading.from_pretrained`; `revision`, `token`, `cache_dir`,
                `force_download` and `local_files_only` of the hub.
        """
        from meg_editor.model.saved.loading import from_pretrained, local_folder

        hub = ("revision", "token", "cache_dir", "force_download", "local_files_only")
        options = {name: kwargs.pop(name) for name in hub if name in kwargs}
        return from_pretrained(local_folder(pretrained_model_name_or_path, **options), **kwargs)
