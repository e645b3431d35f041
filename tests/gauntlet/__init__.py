"""The gauntlet: each fault of the earlier attempt, planted in turn into an otherwise healthy run.

The earlier attempt had all nineteen, and none made a sound: it trained deaf, graded wrong, lost
rounds and ended with exit code 0. Here each is planted where it would really happen, and the run
must stop with one line that names what is wrong and with the exit code that the cluster acts on.
`test_fault_NN_*.py` holds fault NN; read them in order.
"""

FAULTS = {
    1: "the processor cut every clip to a quarter of a second",
    2: "generate, train and infer asked with three different prompts",
    3: "the chat template lost the thinking",
    4: "prompt tokens were trained, and long examples were cut",
    5: "server errors were stored as wrong answers",
    6: "an answer that named two choices was graded right",
    7: "a completion that hit the length limit counted as an answer",
    8: "weights of examples were computed and never used",
    9: "of the right traces always the shortest was kept",
    10: "a model that the server did not have was asked, and the run exited 0",
    11: "a crash lost the round",
    12: "the same clip was in training and test, the benchmark in the training data",
    13: "the audio folder was guessed from a file name",
    14: "LoRA sat on the audio tower, and nobody listed what was wrapped",
    15: "no model was compared with its parent, a worse one was kept",
    16: "the submission was never checked for missing, duplicate or unknown ids",
    17: "sampling options were sent where the server ignored them",
    18: "code for four lettered choices met questions with two to six",
    19: "nothing was trained, and the run exited 0",
    20: "two runs of one name, and a place that cannot be written",
}
