package lab

import (
	"context"
	"fmt"
	"time"
)

// clockJumps are what the wall clocks of the nodes' daemons are set to, beside the right time, one after the other. Certificates are valid from a day
// before they were made.
var clockJumps = []map[string]time.Duration{
	{"n1": 26 * time.Hour},
	{"n1": 26 * time.Hour, "n2": -3 * time.Hour},
	{"n1": -3 * time.Hour, "n2": 0},
	{"n1": 20 * time.Minute, "n2": 20 * time.Minute},
}

// jumpClocks sets the daemons' clocks about while the VM is protected. The last setting stays for what comes then.
var jumpClocks = undisturbed("the wall clocks of the nodes' daemons jump, to and fro", func(ctx context.Context, r *Run) error {
	for _, jump := range clockJumps {
		for _, name := range NodeNames {
			d, ok := jump[name]
			if !ok {
				continue
			}
			r.Tell.Say("%s: its daemon's clock jumps to %+v", name, d)
			if err := r.Lab.Node(name).SetClock(d); err != nil {
				return err
			}
			s, err := r.Lab.Node(name).Client.Node(ctx)
			if err != nil {
				return err
			}
			if off := time.Until(s.Now) - d; off.Abs() > time.Minute {
				return fmt.Errorf("%s: the clock of its daemon did not jump: it is %v off", name, off)
			}
		}
		if err := pause(ctx, 2*time.Second); err != nil {
			return err
		}
		if err := r.protectedStill(ctx); err != nil {
			return err
		}
	}
	return nil
})
