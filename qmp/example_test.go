package qmp_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/coloctl/coloctl/qmp"
)

// Connect, find out whether this QEMU can protect a VM, and ask for its state.
func ExampleDial() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := qmp.Dial(ctx, "/run/vm/qmp.sock", &qmp.Options{Name: "vm"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	features, err := qmp.Probe(ctx, c)
	if err != nil {
		log.Fatal(err)
	}
	var lacks *qmp.UnsupportedError
	if err := features.Require(qmp.ColoFeatures()...); errors.As(err, &lacks) {
		log.Fatalf("%s is missing, use QEMU %s or later", lacks.Feature, lacks.MinQEMU)
	}
	status, err := c.QueryStatus(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(status.Status)
}

// Free a QEMU that hangs on a dead peer. The answer of what hung says success,
// so the state has to be asked again.
func ExampleClient_Yank() {
	rescue := func(ctx context.Context, c *qmp.Client) error {
		instances, err := c.QueryYank(ctx)
		if err != nil {
			return err
		}
		var cut []qmp.YankInstance
		for _, i := range instances {
			if i.Type == "block-node" || i.Type == "migration" {
				cut = append(cut, i)
			}
		}
		if err := c.Yank(ctx, cut...); err != nil {
			return err
		}
		_, err = c.MachineStatus(ctx)
		return err
	}
	_ = rescue
}

// Watch what QEMU does, with a view that is right again after events were lost.
func ExampleClient_Follow() {
	watch := func(ctx context.Context, c *qmp.Client) error {
		var now qmp.MachineStatus
		return c.Follow(ctx, qmp.SubscribeOptions{Match: qmp.Named("STOP", "RESUME", "COLO_EXIT")},
			func(ctx context.Context) (err error) {
				now, err = c.MachineStatus(ctx)
				return err
			},
			func(e qmp.Event) error {
				switch e.Name {
				case "STOP", "RESUME":
					now.Status.Running = e.Name == "RESUME"
				case "COLO_EXIT":
					return errors.New("the peer is lost")
				}
				return nil
			})
	}
	_ = watch
}

func ExampleInetAddr() {
	a := qmp.InetAddr{Host: "10.90.0.2", Port: 9999, MPTCP: true}
	fmt.Println(a)
	fmt.Println(string(a.Flat()))
	fmt.Println(string(a.Legacy()))
	// Output:
	// 10.90.0.2:9999
	// {"type":"inet","host":"10.90.0.2","port":"9999","mptcp":true}
	// {"type":"inet","data":{"host":"10.90.0.2","port":"9999","mptcp":true}}
}
