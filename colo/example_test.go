package colo_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coloctl/coloctl/colo"
)

// A spec is strict: what is wrong is told with its place.
func ExampleParseSpec() {
	spec, err := colo.ParseSpec([]byte(`name: web
memory: 2GiB
disks: [{name: vda, file: web.raw, size: 20GiB}]
nics: [{name: net0, bridge: br0, mac: "52:54:00:12:34:56"}]
`), "web.yaml")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(spec.Name, spec.Memory, spec.NICs[0].Model, time.Duration(spec.Protection.CheckpointDelay))

	_, err = colo.ParseSpec([]byte("name: web\nmemory: 256 apples\n"), "web.yaml")
	var invalid *colo.InvalidSpecError
	if errors.As(err, &invalid) {
		fmt.Println(invalid)
	}
	// Output:
	// web 2GiB virtio-net-pci 300ms
	// web.yaml:2:9: memory: "256 apples" is not a size: expected a whole number with a unit, for example 256MiB or 4GiB
}

// The life of a protected VM. Both nodes are in one program here; daemons speak through package api instead of a Wire.
func ExampleNode() {
	life := func(ctx context.Context, n1, n2 *colo.Node, spec *colo.Spec) error {
		wire, err := colo.NewWire(n1, n2)
		if err != nil {
			return err
		}
		_ = wire // cuts them off from each other, for tests
		if err := n1.Create(ctx, spec); err != nil {
			return err
		}
		if err := n1.Start(ctx, spec.Name); err != nil {
			return err
		}
		if err := n1.Protect(ctx, spec.Name, colo.ProtectOptions{}); err != nil { // the guest runs on
			return err
		}
		s, err := n1.Status(ctx, spec.Name)
		if err != nil {
			return err
		}
		if !s.Verdict.Protected {
			fmt.Println("not protected:", s.Verdict.Reason)
		}
		return n1.Switchover(ctx, spec.Name) // n2 has it now
	}
	_ = life
}

// Failover needs no call: a node that loses its peer decides by itself. Whoever wants to know waits for it.
func ExampleNode_Wait() {
	survived := func(ctx context.Context, n *colo.Node, vm string) (colo.Status, error) {
		return n.Wait(ctx, vm, func(s colo.Status) bool { return s.State == colo.Solo })
	}
	_ = survived
}
