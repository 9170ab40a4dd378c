package both

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo"
)

// Judge joins what the nodes say of a VM into one verdict. It is never better than what the node says on which the primary runs, nor than what the
// other one says, if it answered.
func Judge(halves []Half) colo.Verdict {
	not := func(format string, args ...any) colo.Verdict {
		return colo.Verdict{Reason: fmt.Sprintf(format, args...)}
	}
	var primary, secondary, waiting *Half
	var others []*Half
	for i := range halves {
		h := &halves[i]
		switch {
		case !h.Has():
		case RunsAsPrimary(h.Status.State) && primary != nil:
			return not("%s and %s both run it", primary.Node, h.Node)
		case RunsAsPrimary(h.Status.State):
			primary = h
		case h.Status.State == colo.Secondary:
			secondary = h
		case h.Status.State == colo.Arbitrating:
			waiting = h
		default:
			others = append(others, h)
		}
	}
	if primary != nil && primary.Status.Peer != "" { // of more nodes, others may have what they had before they were replaced
		others = slices.DeleteFunc(others, func(h *Half) bool { return h.Node != primary.Status.Peer })
	}
	switch {
	case primary != nil && !primary.Status.Verdict.Protected:
		return not("%s", because(primary))
	case primary != nil && secondary != nil && !secondary.Status.Verdict.Protected:
		return not("%s says: %s", secondary.Node, secondary.Status.Verdict.Reason)
	case primary != nil && waiting != nil:
		return not("%s says: %s", waiting.Node, waiting.Status.Verdict.Reason)
	case primary != nil && secondary == nil && len(others) > 0:
		return not("%s is %s", others[0].Node, others[0].Status.State)
	case primary != nil:
		return primary.Status.Verdict
	case waiting != nil:
		return not("%s", because(waiting))
	case secondary != nil && !secondary.Status.Verdict.Protected:
		return not("%s", because(secondary))
	case secondary != nil && len(halves) > 1 && halfOf(halves, secondary.Status.Peer) == answersWithout:
		return not("%s, which should run it, does not know it", secondary.Status.Peer)
	case secondary != nil && len(others) > 0:
		return not("%s is %s", others[0].Node, others[0].Status.State)
	case secondary != nil:
		return secondary.Status.Verdict // by heartbeats and checkpoints of the primary: its daemon alone is out of our reach
	}
	if len(others) == 0 {
		return not("no node answers")
	}
	newest := others[0]
	for _, h := range others[1:] {
		if NewerFirst(h, newest) < 0 {
			newest = h
		}
	}
	return not("%s", because(newest))
}

// answer is what came of asking a node for a VM.
type answer int

const (
	noAnswer answer = iota
	answersWithout
	answersWith
)

func halfOf(halves []Half, node string) answer {
	for _, h := range halves {
		switch {
		case h.Node != node:
		case h.Has():
			return answersWith
		case errors.Is(h.Err, colo.ErrNoVM):
			return answersWithout
		}
	}
	return noAnswer
}

// because says why a VM isn't protected, in the words of one node, with what is being done about it.
func because(h *Half) string {
	s := h.Status
	text := fmt.Sprintf("%s on %s", s.State, h.Node)
	if string(s.State) != s.Verdict.Reason {
		text = s.Verdict.Reason
	}
	var more []string
	switch {
	case s.GivenUp != "":
		more = append(more, s.GivenUp)
	case s.State == colo.Arbitrating:
		if s.Why != "" {
			more = append(more, s.Why)
		}
		if s.Plan != nil {
			more = append(more, "next: "+s.Plan.Step)
		}
	case ProgressNow(s) != nil:
		p := fmt.Sprintf("%s, %d %%", s.Progress.What, 100*s.Progress.Done/s.Progress.Total)
		if s.Progress.ETA > 0 {
			p += ", " + s.Progress.ETA.Round(time.Second).String() + " left"
		}
		more = append(more, p)
	case s.Plan != nil:
		more = append(more, s.Plan.Step)
	case s.Outlook != "":
		more = append(more, s.Outlook)
	case s.State == colo.Solo && s.Want == colo.WantRunning:
		more = append(more, "protection isn't wanted; to have it: coloctl protect "+s.VM)
	case s.State == colo.Solo && s.Peer != "" && !s.PeerAlive:
		more = append(more, "no heartbeat of "+s.Peer)
	case s.State == colo.Failed && s.LastError != "":
		more = append(more, s.LastError)
	case s.Why != "" && s.State != colo.Protected && s.State != colo.Secondary:
		more = append(more, s.Why)
	}
	return strings.Join(append([]string{text}, more...), ": ")
}

// ProgressNow is the progress of what is going on, nil if nothing is; the engine keeps the last one.
func ProgressNow(s *colo.Status) *colo.Progress {
	if s.Plan == nil || s.Progress == nil || s.Progress.Total <= 0 || s.State == colo.Arbitrating {
		return nil
	}
	return s.Progress
}
