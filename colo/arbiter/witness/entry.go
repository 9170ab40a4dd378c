package witness

import (
	"fmt"
	"slices"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// entry is what a witness stores for a VM. With one witness it is the record and nothing else. With two, one of them has the seat, that is
// to say it decides; see [Pair].
type entry struct {
	Record *arbiter.Record `json:"record,omitempty"`
	// Tenure counts the seat's moves. 0: this witness isn't part of a pair.
	Tenure uint64 `json:"tenure,omitempty"`
	// Version rises with each change of Record during a tenure.
	Version uint64 `json:"version,omitempty"`
	// Since is the version of the last change in this tenure that no member made: a first record, or a stranger's Forget.
	Since uint64 `json:"since,omitempty"`
	// Seen is the newest that anybody told of the other witness's seat.
	Seen *sight `json:"seen,omitempty"`
	// Promises are those of nodes that don't use the seat of Seen any more.
	Promises map[string]promise `json:"promises,omitempty"`
}

// sight is what the seat held at some moment.
type sight struct {
	Seat    string          `json:"seat"` // instance
	Tenure  uint64          `json:"tenure"`
	Version uint64          `json:"version"`
	Since   uint64          `json:"since,omitempty"`
	Record  *arbiter.Record `json:"record,omitempty"`
}

func (s sight) older(o sight) bool {
	return s.Tenure < o.Tenure || s.Tenure == o.Tenure && s.Version < o.Version
}

// promise: "I ask nothing of the seat any more, unless I withdraw this here first."
type promise struct {
	Seq     uint64           `json:"seq"`
	Given   bool             `json:"given"` // false: withdrawn; kept so that a late copy of the promise isn't taken
	Pending []arbiter.Record `json:"pending,omitempty"`
}

type op string

const (
	opGet      op = "get"
	opAdvance  op = "advance"
	opForget   op = "forget"
	opFound    op = "found"    // make this witness the seat of a VM that isn't part of a pair yet
	opNote     op = "note"     // tell what the other witness holds
	opPromise  op = "promise"  // give up the other witness
	opWithdraw op = "withdraw" // and use it again
	opDrop     op = "drop"     // remove all that is stored about a VM: a person's word
)

// request is one call. Its Tenure is the one the caller lives in; 0 means that it knows one witness only.
type request struct {
	Op         op               `json:"op"`
	Instance   string           `json:"instance,omitempty"` // if set, only this witness may carry it out
	Tenure     uint64           `json:"tenure,omitempty"`
	Since      uint64           `json:"since,omitempty"` // as the caller knows it
	Next       *arbiter.Record  `json:"next,omitempty"`
	Generation uint64           `json:"generation,omitempty"`
	Sight      *sight           `json:"sight,omitempty"`
	Seq        uint64           `json:"seq,omitempty"`
	Pending    []arbiter.Record `json:"pending,omitempty"`
	// Look makes get answer whatever the tenure is.
	Look bool `json:"look,omitempty"`
}

// answer shows the entry as it is after the call.
type answer struct {
	Instance string          `json:"instance"`
	Record   *arbiter.Record `json:"record,omitempty"`
	Tenure   uint64          `json:"tenure,omitempty"`
	Version  uint64          `json:"version,omitempty"`
	Since    uint64          `json:"since,omitempty"`
	Seen     *sight          `json:"seen,omitempty"`
	Given    []string        `json:"given,omitempty"` // who has given up the seat of Seen
	Seq      uint64          `json:"seq,omitempty"`   // of the caller's last promise or withdrawal
	// Moved: nothing was done, because the caller lives in another tenure than this witness, or wants to change a record that has been begun anew.
	Moved bool `json:"moved,omitempty"`
	// Member: the caller was a member before the call.
	Member bool `json:"member,omitempty"`
}

// apply carries out a request by a node. The entry is changed only if changed is true, and must then be stored before the
// answer is given.
func (e *entry) apply(req request, caller, instance string) (ans answer, changed bool, err error) {
	if req.Instance != "" && req.Instance != instance {
		return answer{}, false, fmt.Errorf("%w: %s, not %s", ErrOtherInstance, instance, req.Instance)
	}
	member := e.Record != nil && e.Record.Has(caller)
	moved := false
	switch req.Op {
	case opGet, opAdvance, opForget:
		if !req.Look {
			if moved, err = e.elsewhere(req.Tenure); moved || err != nil {
				break
			}
		}
		if moved = req.Op != opGet && req.Tenure > 0 && req.Since != e.Since; moved {
			break
		}
		changed, err = e.decide(req, caller, member)
	case opFound:
		changed, err = e.found(member)
	case opDrop:
		if e.Record != nil && e.Record.Generation != req.Generation {
			return answer{}, false, fmt.Errorf("%w: %s is at %d, not %d", arbiter.ErrConflict, e.Record.VM, e.Record.Generation, req.Generation)
		}
		*e, changed = entry{}, true
	case opNote, opPromise, opWithdraw:
		if req.Sight == nil || req.Sight.Tenure == 0 || req.Sight.Seat == "" || req.Sight.Seat == instance {
			return answer{}, false, fmt.Errorf("%w: %s without a sight of another witness", arbiter.ErrInvalid, req.Op)
		}
		changed, moved, err = e.hear(req, caller)
	default:
		err = fmt.Errorf("%w: operation %q", arbiter.ErrInvalid, req.Op)
	}
	if err != nil {
		return answer{}, false, err
	}
	ans = answer{Instance: instance, Record: e.Record, Tenure: e.Tenure, Version: e.Version, Since: e.Since, Seen: e.Seen, Moved: moved, Member: member, Seq: e.Promises[caller].Seq}
	for node, p := range e.Promises {
		if p.Given {
			ans.Given = append(ans.Given, node)
		}
	}
	slices.Sort(ans.Given)
	return ans, changed, nil
}

// concerns says whether a node is a member of the newest record that is known here.
func (e *entry) concerns(node string) bool {
	r := e.Record
	if e.Seen != nil && e.Seen.Tenure > e.Tenure {
		r = e.Seen.Record
	}
	return r != nil && r.Has(node)
}

// elsewhere says whether a caller of this tenure must look at another witness.
func (e *entry) elsewhere(tenure uint64) (bool, error) {
	if tenure == 0 && (e.Tenure > 0 || e.Seen != nil) {
		return false, ErrPaired
	}
	return tenure != e.Tenure || e.Seen != nil && e.Seen.Tenure > e.Tenure, nil
}

func (e *entry) decide(req request, caller string, member bool) (changed bool, err error) {
	switch req.Op {
	case opAdvance:
		if req.Next == nil || req.Next.By != caller {
			return false, fmt.Errorf("%w: claim for somebody else sent by node %q", arbiter.ErrInvalid, caller)
		}
		stored, changed, err := arbiter.Decide(e.Record, *req.Next)
		if err != nil || !changed {
			return false, err
		}
		e.Record = &stored
	case opForget:
		if e.Record == nil {
			return false, nil
		}
		if e.Record.Generation != req.Generation {
			return false, fmt.Errorf("%w: %s is at %d, not %d", arbiter.ErrConflict, e.Record.VM, e.Record.Generation, req.Generation)
		}
		e.Record = nil
	default:
		return false, nil
	}
	e.Version++
	if !member && e.Tenure > 0 {
		e.Since = e.Version
	}
	return true, nil
}

func (e *entry) found(member bool) (changed bool, err error) {
	switch {
	case e.Tenure > 0 || e.Seen != nil:
		return false, nil // somebody was faster; the answer shows it
	case e.Record != nil && !member:
		return false, fmt.Errorf("%w: only a member can make %s a pair's", ErrForbidden, e.Record.VM)
	}
	e.Tenure = 1
	e.Version++
	return true, nil
}

// hear is the part of the witness that doesn't have the seat.
func (e *entry) hear(req request, caller string) (changed, moved bool, err error) {
	s := *req.Sight
	switch {
	case e.Tenure == s.Tenure || e.Tenure == 0 && e.Record != nil:
		return false, false, fmt.Errorf("%w: one was seen at %s in tenure %d", ErrSplit, s.Seat, s.Tenure)
	case e.Tenure > s.Tenure, e.Seen != nil && e.Seen.Tenure > s.Tenure:
		return false, true, nil
	}
	if e.Seen == nil || e.Seen.older(s) {
		if e.Seen == nil || e.Seen.Tenure != s.Tenure {
			e.Promises = nil // they were about an older tenure
		}
		e.Seen, changed = &s, true
	}
	if req.Op == opNote {
		return changed, false, nil
	}
	p := promise{Seq: req.Seq, Given: req.Op == opPromise, Pending: req.Pending}
	if old, ok := e.Promises[caller]; ok && old.Seq >= p.Seq {
		return changed, false, nil // it is a late copy
	}
	if e.Promises == nil {
		e.Promises = map[string]promise{}
	}
	e.Promises[caller] = p
	e.adopt()
	return true, false, nil
}

// adopt takes the seat when nobody can change or has seen more at the old one: all members of the newest record that is known of, and
// of all records that may have followed it there unknown to their claimers, have promised.
func (e *entry) adopt() {
	best := e.Seen
	if best.Record == nil {
		return // nobody is current, so nobody's promise means anything
	}
	need := slices.Clone(best.Record.Members)
	for _, p := range e.Promises {
		for _, r := range p.Pending {
			if p.Given {
				need = append(need, r.Members...)
			}
		}
	}
	for _, n := range need {
		if !e.Promises[n].Given {
			return
		}
	}
	*e = entry{Record: best.Record, Tenure: best.Tenure + 1, Version: best.Version + 1}
}
