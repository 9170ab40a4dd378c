package state_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coloctl/coloctl/state"
)

func temp() (path string, remove func()) {
	dir, err := os.MkdirTemp("", "state-example-")
	if err != nil {
		panic(err)
	}
	return filepath.Join(dir, "state.db"), func() { _ = os.RemoveAll(dir) }
}

// A node goes on alone: the generation, the intent that follows from it and the history are one commit.
func ExampleStore_Do() {
	path, remove := temp()
	defer remove()
	s, err := state.Open(path, &state.Options{Node: "east"})
	if err != nil {
		panic(err)
	}
	defer func() { _ = s.Close() }()
	if err := s.Create(state.VM{Name: "db", Role: state.RolePrimary, Phase: "protected", Generation: 4, Members: []string{"east", "west"}}); err != nil {
		panic(err)
	}

	var plan uint64
	err = s.Do(func(tx *state.Tx) error {
		err := tx.Update("db", func(v *state.VM) error {
			v.Generation, v.Members, v.Phase = 5, []string{"east"}, "failing-over"
			return nil
		})
		if err != nil {
			return err
		}
		plan, err = tx.Begin(state.Intent{VM: "db", Plan: "failover", Generation: 5, Steps: []state.Step{{Name: "yank"}, {Name: "resume"}}})
		if err != nil {
			return err
		}
		_, err = tx.Append(state.Entry{VM: "db", Kind: "failover", Text: "west lost, going on alone", Generation: 5})
		return err
	})
	if err != nil {
		panic(err)
	}
	_ = s.StepDone(plan, 0, nil)

	// After a crash the journal says where to look.
	open, _ := s.OpenIntents()
	for _, in := range open {
		for _, step := range in.Steps {
			fmt.Printf("%s %s %s: %q\n", in.VM, in.Plan, step.Name, step.Status)
		}
	}
	fmt.Println(errors.Is(s.Update("db", func(v *state.VM) error { v.Generation = 3; return nil }), state.ErrGenerationFell))
	// Output:
	// db failover yank: "done"
	// db failover resume: ""
	// true
}

func ExampleStore_Ports() {
	path, remove := temp()
	defer remove()
	s, err := state.Open(path, &state.Options{Ports: state.PortRange{First: 19000, Last: 19099}})
	if err != nil {
		panic(err)
	}
	defer func() { _ = s.Close() }()
	ports, err := s.Ports("db", []string{"migrate", "nbd"}, nil)
	fmt.Println(ports, err)
	again, err := s.Ports("db", []string{"nbd"}, nil)
	fmt.Println(again, err)
	// Output:
	// map[migrate:19000 nbd:19001] <nil>
	// map[nbd:19001] <nil>
}
