package colo

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/coloctl/coloctl/internal/qmptest"
	"github.com/coloctl/coloctl/qmp"
)

func TestHardware(t *testing.T) {
	f := qmptest.New(t)
	f.Handle("query-machines", func(json.RawMessage) (any, error) {
		return []qmp.Machine{{Name: "none", CPUMax: 1}, {Name: "pc-i440fx-11.1", Alias: "pc", CPUMax: 255}, {Name: "pc-q35-11.1", Alias: "q35", CPUMax: 4096}, {Name: "isapc", CPUMax: 1}}, nil
	})
	f.Handle("query-cpu-definitions", func(json.RawMessage) (any, error) {
		return []qmp.CPUModel{{Name: "qemu64"}, {Name: "host"}}, nil
	})
	h, err := probeHardware(t.Context(), f.Client(t.Context()), "/usr/bin/qemu", "11.1.3")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		machine, cpu string
		vcpus        int
		want         string // empty: fine
	}{
		{"pc", "", 1, ""},
		{"type=q35,smm=off", "host,+vmx", 2, ""},
		{"pc-i440fx-11.1", "qemu64", 255, ""},
		{"fritz", "", 1, `machine: "fritz" is no machine of QEMU 11.1.3: expected pc, q35, or one of those that /usr/bin/qemu -M help lists`},
		{"none", "", 1, `machine: "none" is no machine of QEMU 11.1.3: expected pc, q35, or one of those that /usr/bin/qemu -M help lists`},
		{"isapc", "", 2, `vcpus: 2: expected at most 1, which is what a machine isapc of QEMU 11.1.3 takes`},
		{"pc", "nonsense", 1, `cpu: "nonsense" is no CPU model of QEMU 11.1.3: expected for example qemu64 or host, or one of those that /usr/bin/qemu -cpu help lists`},
	} {
		got := ""
		if err := errors.Join(h.check(&Spec{Machine: c.machine, CPU: c.cpu, VCPUs: c.vcpus})...); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s %s %d\n got %s\nwant %s", c.machine, c.cpu, c.vcpus, got, c.want)
		}
	}
}
