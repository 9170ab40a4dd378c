package qmp_test

import (
	"encoding/json"
	"testing"
	"time"

	goqemu "github.com/digitalocean/go-qemu/qmp"

	"github.com/coloctl/coloctl/qmp"
)

// BenchmarkRoundTrip compares this client with go-qemu's SocketMonitor on one
// QEMU: query-status, its reply decoded.
func BenchmarkRoundTrip(b *testing.B) {
	v := startQEMU(b, "-M", "none")
	ours := v.dial(b, v.path, nil)
	v.dial(b, v.second, nil).Close() // wait until it listens
	theirs, err := goqemu.NewSocketMonitor("unix", v.second, time.Second)
	if err != nil {
		b.Fatal(err)
	}
	if err := theirs.Connect(); err != nil {
		b.Fatal(err)
	}
	defer theirs.Disconnect()

	b.Run("client=ours", func(b *testing.B) {
		perSecond(b, func() error {
			var s qmp.Status
			return ours.Execute(b.Context(), "query-status", nil, &s)
		})
	})
	b.Run("client=ours,adapter", func(b *testing.B) {
		mon := qmp.AsMonitor(ours, time.Second)
		perSecond(b, func() error { return runMonitor(mon) })
	})
	b.Run("client=go-qemu", func(b *testing.B) {
		perSecond(b, func() error { return runMonitor(theirs) })
	})
}

func runMonitor(mon goqemu.Monitor) error {
	raw, err := mon.Run([]byte(`{"execute":"query-status"}`))
	if err != nil {
		return err
	}
	var reply struct {
		Return qmp.Status `json:"return"`
	}
	return json.Unmarshal(raw, &reply)
}

func perSecond(b *testing.B, roundTrip func() error) {
	b.ReportAllocs()
	for b.Loop() {
		if err := roundTrip(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "roundtrips/s")
}
