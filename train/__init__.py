"""Training with fill-in-the-middle, run from the checkout: ``python -m train``.

A reader's order:

- `loop.fit` is a run from start to end; `step.train_step` is one step of it.
- Settings: config, config_checks, presets; the command line: cli, command.
- Documents to tokens: sources (file_tree, hugging_face_data), store (token_store, fingerprint,
  headers, near_duplicates, benchmark_overlap), tokenizer_training.
- Tokens to batches: pieces, fim, packing, data.
- The step: loss, optimizer, lora, step.
- The run's folder: run_folder, run_record, run_lock, start, signals.
- Checkpoints: checkpoints (checkpoint_folder, checkpoint_manifest, folder_probe, leaves).
- What a run tells: report (stopped), metrics, evaluation, plot; what it leaves: export, card.
- TPUs that are not there: plan, tpu_programs. The demo model's data: demo_corpus/.
"""
