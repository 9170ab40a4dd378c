// Package arbiter decides which copy of a VM may go on alone.
//
// # Purpose
//
// When the two copies of a VM lose each other, neither can know whether the other one is dead or only out of reach.
// The arbiter is the third voice: it keeps one [Record] for each VM, the generation and the nodes whose copy is
// current, and replaces it by one atomic compare-and-set. The first claimer of a generation wins, everybody else is told
// who won, and asking again gives the same answer. So a claimer that lost the reply simply asks again.
//
// # What a caller must do
//
// Take the tap off the bridge before asking ("cut first"). Go on only if [Judge] says [Won]. On [Lost] kill the copy and
// mark its disks outdated. On [Behind] or [ErrNoRecord] the arbiter knows less than the claimer, so it lost its memory or is
// another one than before: it can't speak for the past, and the claimer must hold and ask a person. On
// [ErrUnreachable] the outcome is unknown, the claim may have been stored: hold, and ask the same again.
//
// # Ordering and concurrency
//
// Every implementation is linearizable for each VM and safe for concurrent use. An answer is a fact about the moment it
// was given; a record can only be replaced by one of the next generation, claimed by a node that the record itself names. That is why
// a node that lost can't come back: it isn't a member any more, until a member takes it in.
//
// The rule itself is [Decide]; every backend stores what it says and nothing else.
package arbiter
