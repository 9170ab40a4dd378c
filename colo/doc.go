// Package colo is the engine: it keeps a virtual machine running on two nodes so that it survives the loss of either.
//
// A [Node] owns the QEMUs of one host and takes its own decisions. Two nodes cooperate through the small interface [Peer]; failover needs
// no peer at all. For each VM one goroutine owns the state machine whose rows are the table of [Transitions]; plans, lists of named steps,
// do the work in a second goroutine and report back. So a VM does one thing at a time, and an event always finds it in exactly one state.
//
// Ordering: an intent is in the store before the first step of its plan, the outcome of each step after it. Generations are advanced at the
// arbiter before the fact they announce has an effect: a copy goes on alone only after the arbiter has said so.
//
// Every exported method of Node may be called concurrently. Changing methods wait until the VM has reached the state asked for; ending
// their context ends the waiting only, unless said otherwise.
package colo
