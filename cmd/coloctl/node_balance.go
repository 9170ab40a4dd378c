package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/internal/both"
	"github.com/coloctl/coloctl/internal/lab"
)

// movedVM is what became of one VM.
type movedVM struct {
	both.Move
	Done  bool   `json:"done"`
	Error string `json:"error,omitempty"`
}

// nodeBalance switches VMs over, one after the other, until each runs where it should.
func nodeBalance(cc *cli.Context, s *site) error {
	var names []string
	nodes := make([]api.NodeStatus, len(s.Nodes))
	errs := s.Each(func(i int, t *target) (err error) {
		nodes[i], err = t.Node(cc.Context)
		return err
	})
	if err := s.AllFailed(errs); err != nil {
		return err
	}
	for i, t := range s.Nodes {
		if errs[i] != nil {
			return attempt(errs[i], "ask", t.String(), t)
		}
		names = append(names, nodes[i].VMs...)
	}
	slices.Sort(names)
	var placed []both.Placed
	for _, vm := range slices.Compact(names) {
		halves, err := s.Look(cc.Context, vm)
		if errors.Is(err, colo.ErrNoVM) {
			continue // deleted in this moment
		}
		if err != nil {
			return attempt(err, "ask about", vm, nil)
		}
		preferred, err := preferredNode(cc, vm, halves)
		if err != nil {
			return attempt(err, "ask about", vm, nil)
		}
		placed = append(placed, both.PlaceOf(vm, preferred, halves))
	}
	moves := make([]movedVM, 0, len(placed))
	todo := 0
	for _, m := range both.Balance(placed) {
		moves = append(moves, movedVM{Move: m})
		if m.To != "" {
			todo++
		}
	}
	dry := cc.Bool("dry-run")
	var err error
	if !dry && todo > 0 {
		if err = confirm(cc, "", "%s\nSwitch %s over, one after the other?", movesText(moves, true), plural(todo, "VM")); err != nil {
			return err
		}
		err = s.move(cc, moves)
	}
	if f := format(cc); f != lab.FormatTable {
		return errors.Join(lab.Encode(cc.App.Writer, f, moves), err)
	}
	_, werr := fmt.Fprintln(cc.App.Writer, movesText(moves, dry))
	return errors.Join(werr, err)
}

// preferredNode asks the first node that knows the VM for its spec.
func preferredNode(cc *cli.Context, vm string, halves []half) (string, error) {
	var errs []error
	for _, h := range halves {
		if h.Target == nil || !h.Has() {
			continue
		}
		full, err := h.Target.VM(cc.Context, vm)
		if err == nil {
			return full.Spec.Preferred, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// move does what is to be done and goes on after a VM that can't be moved.
func (s *site) move(cc *cli.Context, moves []movedVM) error {
	var errs []error
	for i := range moves {
		m := &moves[i]
		if m.To == "" {
			continue
		}
		reason := cc.String("reason")
		if reason == "" {
			reason = "balance: " + m.Why
		}
		err := func() error {
			t, _, err := s.Route(cc.Context, m.VM)
			if err != nil {
				return attempt(err, "switchover", m.VM, t)
			}
			op, err := t.Switchover(cc.Context, m.VM, api.Request{Reason: reason})
			if err != nil {
				return attempt(err, "switchover", m.VM, t)
			}
			_, err = t.Wait(cc.Context, op.ID, nil)
			return attempt(err, "switchover", m.VM, t)
		}()
		if m.Done = err == nil; err != nil {
			m.Error = err.Error()
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func movesText(moves []movedVM, dry bool) string {
	text := ""
	for i, m := range moves {
		if i > 0 {
			text += "\n"
		}
		switch {
		case m.To == "":
			text += fmt.Sprintf("%s stays: %s", m.VM, m.Why)
		case m.Error != "":
			text += fmt.Sprintf("%s was NOT moved from %s to %s: %s", m.VM, m.From, m.To, m.Error)
		case dry:
			text += fmt.Sprintf("%s would go from %s to %s: %s", m.VM, m.From, m.To, m.Why)
		default:
			text += fmt.Sprintf("%s runs on %s now, and is protected again by the nodes themselves: %s", m.VM, m.To, m.Why)
		}
	}
	if len(moves) == 0 {
		text = "there are no VMs"
	}
	return text
}
