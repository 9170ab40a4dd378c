package arbiter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Errors of an arbiter. All are found with errors.Is, also through what a backend wraps around them.
var (
	// ErrUnreachable is returned when no answer came. The request may or may not have been carried out: a claimer
	// must neither go on nor give up because of it, but hold and ask the same again.
	ErrUnreachable = errors.New("arbiter unreachable")

	// ErrNoRecord is returned by Get for a VM the arbiter doesn't know, and by Advance to a generation above 1 of
	// such a VM. The second case means that the arbiter lost its memory or that it is the wrong one.
	ErrNoRecord = errors.New("arbiter has no record of this VM")

	// ErrInvalid is returned for a record that could never be stored: empty names, generation 0, no members,
	// or a By that isn't the caller.
	ErrInvalid = errors.New("invalid arbiter record")

	// ErrConflict is returned by Forget when the stored generation isn't the one named. Nothing was removed.
	ErrConflict = errors.New("arbiter holds another generation")
)

// Record says which copies of a VM are current.
type Record struct {
	// VM identifies the machine. It must not be reused for a different machine while one of the nodes may still remember
	// the old one, so an id that is made with the VM is better than its name.
	VM string `json:"vm"`
	// Generation rises by one each time the set of current copies changes. The first record has 1.
	Generation uint64 `json:"generation"`
	// Members are the nodes whose copy may go on. A set: order and repetition mean nothing.
	Members []string `json:"members"`
	// By is the node that made this record.
	By string `json:"by"`
}

// Has says whether node is a member.
func (r Record) Has(node string) bool { return slices.Contains(r.Members, node) }

// Equal compares two records; Members as a set.
func (r Record) Equal(o Record) bool {
	return r.VM == o.VM && r.Generation == o.Generation && r.By == o.By &&
		(slices.Equal(r.Members, o.Members) || slices.Equal(memberSet(r.Members), memberSet(o.Members)))
}

// String is made for logs and messages.
func (r Record) String() string {
	return fmt.Sprintf("%s generation %d {%s} by %s", r.VM, r.Generation, strings.Join(memberSet(r.Members), " "), r.By)
}

// Normal returns a copy that shares no memory with r, with the members sorted and each one once: the form in which records are stored.
func (r Record) Normal() Record {
	r.Members = memberSet(r.Members)
	return r
}

// Validate says what makes r impossible to store, wrapping [ErrInvalid].
func (r Record) Validate() error {
	switch {
	case r.VM == "":
		return fmt.Errorf("%w: no VM named", ErrInvalid)
	case r.Generation == 0:
		return fmt.Errorf("%w: %s: generation 0 (the first is 1)", ErrInvalid, r.VM)
	case r.By == "":
		return fmt.Errorf("%w: %s generation %d: no claimer named", ErrInvalid, r.VM, r.Generation)
	case len(r.Members) == 0:
		return fmt.Errorf("%w: %s generation %d: no members; a VM that nobody may run is removed with Forget", ErrInvalid, r.VM, r.Generation)
	case slices.Contains(r.Members, ""):
		return fmt.Errorf("%w: %s generation %d: a member without name", ErrInvalid, r.VM, r.Generation)
	}
	return nil
}

func memberSet(in []string) []string {
	out := slices.Clone(in)
	slices.Sort(out)
	return slices.Compact(out)
}

// Arbiter keeps one record for each VM.
//
// All methods may be called concurrently. They end with [ErrUnreachable] (wrapping the context's error) when ctx ends
// before the answer came; an implementation never blocks longer than that.
type Arbiter interface {
	// Get returns the stored record, or [ErrNoRecord].
	Get(ctx context.Context, vm string) (Record, error)

	// Advance stores next if [Decide] allows it, and returns the record that is stored now in any case: the
	// caller has won exactly if that equals next. See [Judge]. Repeating a call that won wins again, as long as the
	// generation wasn't superseded.
	Advance(ctx context.Context, next Record) (Record, error)

	// Forget removes the record of a VM that is being deleted, if its generation is the one named; otherwise it
	// returns [ErrConflict]. It is no error if there is no record, so it may be repeated. Nobody must be running
	// the VM: with the record goes all knowledge of who was current.
	Forget(ctx context.Context, vm string, generation uint64) error
}

// Decide is the rule. current is what is stored (nil if nothing is), next what is asked for. It returns the record that is to be
// stored afterwards and whether that is a change which must be durable before it is answered.
//
// next is stored if there is no record and it has generation 1, or if it follows the current generation and its
// claimer is a member of the current record. A backend calls this inside its own transaction.
func Decide(current *Record, next Record) (stored Record, changed bool, err error) {
	if err := next.Validate(); err != nil {
		return Record{}, false, err
	}
	next = next.Normal()
	if current == nil {
		if next.Generation != 1 {
			return Record{}, false, fmt.Errorf("%w: %s claims generation %d of %s", ErrNoRecord, next.By, next.Generation, next.VM)
		}
		return next, true, nil
	}
	if current.VM != next.VM {
		return Record{}, false, fmt.Errorf("%w: record of %s compared with %s", ErrInvalid, current.VM, next.VM)
	}
	if next.Generation-1 == current.Generation && current.Has(next.By) {
		return next, true, nil
	}
	return current.Normal(), false, nil
}

// Verdict is what an answer of Advance means for the one who asked.
type Verdict int

const (
	// Unsure is the zero value, so that a forgotten assignment never reads as a win.
	Unsure Verdict = iota
	// Won: the record asked for is the stored one. The claimer may go on.
	Won
	// Lost: somebody else's copy is the current one. The claimer's copy must die and its disks are outdated.
	Lost
	// Behind: the arbiter's generation is older than the one the claimer lives in, so it can't judge. Nobody has won and nothing is
	// proven outdated: hold, and ask a person.
	Behind
)

// String returns the verdict's word.
func (v Verdict) String() string {
	switch v {
	case Won:
		return "won"
	case Lost:
		return "lost"
	case Behind:
		return "arbiter behind"
	default:
		return "unsure"
	}
}

// Judge compares what was asked for with what Advance returned.
func Judge(want, got Record) Verdict {
	switch {
	case got.VM != want.VM || got.Generation == 0:
		return Unsure
	case got.Equal(want):
		return Won
	case got.Generation >= want.Generation:
		return Lost
	case got.Generation == want.Generation-1 && !got.Has(want.By):
		// The claimer believed itself current in this generation and wasn't.
		return Lost
	default:
		return Behind
	}
}
