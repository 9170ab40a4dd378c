package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestIntentLife(t *testing.T) {
	s := tempStore(t, nil)
	id, err := s.Begin(Intent{VM: "x", Plan: "protect", Steps: []Step{{Name: "one", Status: StepDone}, {Name: "two"}}, Data: json.RawMessage(`{"k":1}`), Outcome: OutcomeDone})
	ok(t, err)
	_, err = s.Begin(Intent{VM: "x", Plan: "stop"})
	var other *IntentOpenError
	if !errors.As(err, &other) || other.Open.ID != id || other.Open.Plan != "protect" {
		t.Errorf("second plan: %v", err)
	}
	second, err := s.Begin(Intent{VM: "y", Plan: "stop", Steps: []Step{{Name: "one"}}})
	ok(t, err)
	if second <= id {
		t.Errorf("numbers %d, %d", id, second)
	}
	ok(t, s.StepDone(id, 0, nil))
	ok(t, s.StepDone(id, 1, errors.New("no peer")))
	path := s.Path()
	ok(t, s.Close())
	s = openStore(t, path, nil)

	open, err := s.OpenIntents()
	ok(t, err)
	if len(open) != 2 || open[0].ID != id || open[1].ID != second {
		t.Fatalf("%+v", open)
	}
	in := open[0]
	if in.Steps[0].Status != StepDone || in.Steps[1].Status != StepFailed || in.Steps[1].Error != "no peer" || in.Steps[0].Name != "one" ||
		in.Outcome != "" || !in.Ended.IsZero() || string(in.Data) != `{"k":1}` || in.Begun.IsZero() {
		t.Errorf("%+v", in)
	}
	ok(t, s.StepUndone(id, 1, nil))
	ok(t, s.StepUndone(id, 0, errors.New("stuck")))
	ok(t, s.End(id, OutcomeFailed))
	ok(t, s.End(id, OutcomeFailed))
	wantErr(t, s.End(id, OutcomeDone), ErrIntentEnded)
	wantErr(t, s.StepDone(id, 0, nil), ErrIntentEnded)
	in, err = s.Intent(id)
	ok(t, err)
	if in.Steps[1].Status != StepUndone || in.Steps[1].Error != "" || in.Steps[0].Error != "undo: stuck" || in.Outcome != OutcomeFailed || in.Ended.IsZero() {
		t.Errorf("%+v", in)
	}
	wantErr(t, s.StepDone(second, 1, nil), ErrInvalid)
	wantErr(t, s.StepDone(second, -1, nil), ErrInvalid)
	wantErr(t, s.StepDone(999, 0, nil), ErrNotFound)
	wantErr(t, s.End(999, OutcomeDone), ErrNotFound)
	wantErr(t, s.End(second, "maybe"), ErrInvalid)
	_, err = s.Begin(Intent{VM: "z"})
	wantErr(t, err, ErrInvalid)
	_, err = s.Begin(Intent{VM: "z", Plan: "p", Data: json.RawMessage(`{`)})
	wantErr(t, err, ErrInvalid)
}

// A failover takes over from whatever was going on, in one commit.
func TestTakeOver(t *testing.T) {
	s := tempStore(t, nil)
	old, err := s.Begin(Intent{VM: "x", Plan: "protect"})
	ok(t, err)
	var id uint64
	ok(t, s.Do(func(tx *Tx) error {
		if err := tx.End(old, OutcomeAbandoned); err != nil {
			return err
		}
		id, err = tx.Begin(Intent{VM: "x", Plan: "failover", Steps: []Step{{Name: "yank"}}})
		if err != nil {
			return err
		}
		return tx.SetIntentData(id, json.RawMessage(`[1]`))
	}))
	open, err := s.OpenIntents()
	ok(t, err)
	if len(open) != 1 || open[0].ID != id || string(open[0].Data) != "[1]" {
		t.Errorf("%+v", open)
	}
}

func TestEndedIntentsAreBounded(t *testing.T) {
	s := tempStore(t, nil)
	var first, last uint64
	ok(t, s.Do(func(tx *Tx) error {
		for range keptIntents + 10 {
			id, err := tx.Begin(Intent{VM: "x", Plan: "p"})
			if err != nil {
				return err
			}
			if first == 0 {
				first = id
			}
			last = id
			if err := tx.End(id, OutcomeDone); err != nil {
				return err
			}
		}
		return nil
	}))
	ended, err := s.EndedIntents()
	ok(t, err)
	if len(ended) != keptIntents || ended[len(ended)-1].ID != last {
		t.Errorf("%d kept, last %d", len(ended), ended[len(ended)-1].ID)
	}
	_, err = s.Intent(first)
	wantErr(t, err, ErrNotFound)
}

func TestHistory(t *testing.T) {
	s := tempStore(t, &Options{History: 5})
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ok(t, s.Do(func(tx *Tx) error {
		for i := range 12 {
			vm := []string{"", "x", "y"}[i%3]
			if _, err := tx.Append(Entry{VM: vm, Kind: "k", Text: fmt.Sprint(i), Time: at.Add(time.Duration(i) * time.Second)}); err != nil {
				return err
			}
		}
		for i := 12; i < 16; i++ {
			if _, err := tx.Append(Entry{VM: "x", Kind: "k", Text: fmt.Sprint(i)}); err != nil {
				return err
			}
		}
		return nil
	}))
	texts := func(q Query) string {
		t.Helper()
		list, err := s.History(q)
		ok(t, err)
		if !slices.IsSortedFunc(list, func(a, b Entry) int { return int(a.Seq) - int(b.Seq) }) {
			t.Errorf("not in order: %+v", list)
		}
		var out []string
		for _, e := range list {
			if e.Time.IsZero() {
				t.Errorf("no time: %+v", e)
			}
			out = append(out, e.Text)
		}
		return fmt.Sprint(out)
	}
	for want, q := range map[string]Query{
		"[0 2 3 5 6 8 9 10 11 12 13 14 15]": {},
		"[10 12 13 14 15]":                  {VM: "x"}, // 1, 4 and 7 were dropped
		"[2 5 8 11]":                        {VM: "y"},
		"[0 3 6 9]":                         {Node: true},
		"[14 15]":                           {Limit: 2},
		"[5 8 11]":                          {VM: "y", After: 3},
		"[8 11]":                            {VM: "y", Since: at.Add(6 * time.Second)},
		"[11 12 13 14 15]":                  {After: 11},
		"[]":                                {VM: "nobody"},
	} {
		if got := texts(q); got != want {
			t.Errorf("%+v: %s, want %s", q, got, want)
		}
	}
	ok(t, s.DropHistory("y"))
	ok(t, s.DropHistory(""))
	if got := texts(Query{}); got != "[10 12 13 14 15]" {
		t.Errorf("after dropping: %s", got)
	}
	seq, err := s.Append(Entry{Kind: "k"})
	ok(t, err)
	if seq != 17 {
		t.Errorf("number %d used again", seq)
	}
	for _, e := range []Entry{{Text: "no kind"}, {Kind: "k", VM: "@node"}, {Kind: "k", Data: json.RawMessage("x")}} {
		_, err := s.Append(e)
		wantErr(t, err, ErrInvalid)
	}
}

func TestPorts(t *testing.T) {
	opt := &Options{Ports: PortRange{First: 100, Last: 105}}
	s := tempStore(t, opt)
	ok(t, s.Create(VM{Name: "x"}))
	x, err := s.Ports("x", []string{"nbd", "migrate"}, func(p int) bool { return p != 100 })
	ok(t, err)
	if fmt.Sprint(x) != "map[migrate:102 nbd:101]" {
		t.Errorf("%v", x)
	}
	y, err := s.Ports("y", []string{"nbd"}, nil)
	ok(t, err)
	if y["nbd"] != 100 {
		t.Errorf("%v", y)
	}
	path := s.Path()
	ok(t, s.Close())
	s = openStore(t, path, &Options{Ports: PortRange{First: 103, Last: 104}})
	again, err := s.Ports("x", []string{"migrate", "nbd", "mirror"}, nil)
	ok(t, err)
	if fmt.Sprint(again) != "map[migrate:102 mirror:103 nbd:101]" {
		t.Errorf("%v", again)
	}
	_, err = s.Ports("y", []string{"a", "b"}, nil)
	wantErr(t, err, ErrNoPorts)
	all, err := s.AllPorts()
	ok(t, err)
	if len(all["y"]) != 1 {
		t.Errorf("a refused request left ports: %v", all)
	}
	ok(t, s.ReleasePorts("x", "mirror"))
	if p, err := s.Ports("y", []string{"a", "b"}, nil); err != nil || p["a"] != 103 || p["b"] != 104 {
		t.Errorf("%v %v", p, err)
	}
	ok(t, s.Delete("x")) // gives back what it has
	all, err = s.AllPorts()
	ok(t, err)
	if len(all) != 1 {
		t.Errorf("%v", all)
	}
	for _, use := range []string{"", "nbd"} {
		vm := map[string]string{"": "x", "nbd": ""}[use]
		_, err := s.Ports(vm, []string{use}, nil)
		wantErr(t, err, ErrInvalid)
	}
}
