package main

import (
	"errors"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/internal/lab"
)

func waitCommand(r rules) *cli.Command {
	return r.remote(&cli.Command{Name: "wait", Usage: "wait for the end of an operation", Action: withSite(func(cc *cli.Context, s *site) error {
		t, op, err := s.operation(cc)
		if err != nil {
			return err
		}
		return follow(cc, t, op)
	})}, operands{min: 1, max: 1, usage: "OPERATION"})
}

func cancelCommand(r rules) *cli.Command {
	return r.remote(&cli.Command{Name: "cancel", Usage: "take back an operation that is going on (a start, a protection, a resync)",
		Action: withSite(func(cc *cli.Context, s *site) error {
			t, op, err := s.operation(cc)
			if err != nil {
				return err
			}
			op, err = t.Cancel(cc.Context, op.ID)
			if err != nil {
				return attempt(err, "cancel "+op.Kind, op.VM, t)
			}
			if f := format(cc); f != lab.FormatTable {
				return lab.Encode(cc.App.Writer, f, op)
			}
			_, err = cc.App.Writer.Write([]byte(op.ID + "\n"))
			return err
		})}, operands{min: 1, max: 1, usage: "OPERATION"})
}

// operation finds the node that knows an operation.
func (s *site) operation(cc *cli.Context) (*target, api.Operation, error) {
	id := cc.Args().First()
	found := make([]api.Operation, len(s.Nodes))
	errs := s.Each(func(i int, t *target) (err error) {
		found[i], err = t.Operation(cc.Context, id, 0)
		return err
	})
	for i, err := range errs {
		if err == nil {
			return s.Nodes[i], found[i], nil
		}
	}
	err := attempt(s.AllFailed(errs), cc.Command.Name, id, nil)
	if len(s.Nodes) == 1 && errors.Is(err, api.ErrNoOperation) {
		err = &taskError{"", err, "it may be another node's: give the command there, or use a context with all nodes (coloctl context add)"}
	}
	return nil, api.Operation{}, err
}
