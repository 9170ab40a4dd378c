package lab

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

// The names are part of the interface: programs read them.
const resultFields = `scenario, seed, ok, error, qemu, accel, boot_id_same, boots, tcp_survived, tcp_total, writes_acked, writes_lost, writes_duplicated,
outputs_from_both, detect_ms, failover_ms, blackout_http_ms, blackout_tcp_ms, protect_ms, protect_pause_ms, resync_bytes, disk_bytes, reprotect_ms,
checkpoints, campaign, latency, resync_mode, resync_ms, full_bytes, full_ms, differ_bytes, halves_differ, silent_ms, attempts, intrusions, checkpoint_pause_p50_ms, checkpoint_pause_p99_ms, http_p50_ms, tcp_p50_ms`

func TestResultFieldsAndNulls(t *testing.T) {
	var buf bytes.Buffer
	if err := Encode(&buf, FormatJSON, Result{Scenario: "switchover", Seed: 3}); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(buf.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{}
	for _, name := range strings.FieldsFunc(resultFields, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' }) {
		want[name] = nil // not measured
	}
	want["scenario"], want["seed"], want["ok"] = "switchover", 3.0, false
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if strings.Count(buf.String(), "\n") != 1 {
		t.Error("an object is one line")
	}
}

func TestEncodeYAML(t *testing.T) {
	var buf bytes.Buffer
	for seed := range uint64(2) {
		if err := Encode(&buf, FormatYAML, Result{Scenario: "story", Seed: seed, OK: true, DetectMS: ms(3500 * time.Microsecond)}); err != nil {
			t.Fatal(err)
		}
	}
	dec := yaml.NewDecoder(&buf)
	for seed := range uint64(2) {
		var got struct {
			Scenario string
			Seed     uint64
			DetectMS float64 `yaml:"detect_ms"`
		}
		if err := dec.Decode(&got); err != nil {
			t.Fatal(err)
		}
		if got.Scenario != "story" || got.Seed != seed || got.DetectMS != 3.5 {
			t.Errorf("got %+v", got)
		}
	}
}

func TestWriteTable(t *testing.T) {
	results := []Result{
		{Seed: 1, OK: true, DetectMS: ms(3 * time.Millisecond), BlackoutHTTPMS: ms(80 * time.Millisecond), TCPSurvived: ptr(5), TCPTotal: ptr(5),
			WritesAcked: ptr(300), WritesLost: ptr(0), WritesDuplicated: ptr(0), OutputsFromBoth: ptr(0)},
		{Seed: 2, Error: ptr("the guest never answered"), DetectMS: ms(5 * time.Millisecond)},
	}
	var buf bytes.Buffer
	if err := WriteTable(&buf, results); err != nil {
		t.Fatal(err)
	}
	want := `SEED    OK   DETECT  FAILOVER  HTTP  TCP  SURVIVED  ACKED  LOST  TWICE  BOTH
1       yes  3       -         80    -    5/5       300    0     0      0
2       NO   5       -         -     -    -         -      -     -      -
median  -    4       -         80    -    -         -      -     -      -
seed 2: the guest never answered
`
	if diff := cmp.Diff(want, buf.String()); diff != "" {
		t.Error(diff)
	}
}

func TestMedian(t *testing.T) {
	if median(nil) != nil {
		t.Error("a median of nothing")
	}
	if got := *median([]float64{9, 1, 5}); got != 5 {
		t.Error(got)
	}
	if got := *median([]float64{9, 1, 5, 6}); got != 5.5 {
		t.Error(got)
	}
}

func TestParseFormat(t *testing.T) {
	for _, s := range []string{"table", "json", "yaml"} {
		if _, err := ParseFormat(s); err != nil {
			t.Error(err)
		}
	}
	if _, err := ParseFormat("xml"); err == nil {
		t.Error("xml was accepted")
	}
}
