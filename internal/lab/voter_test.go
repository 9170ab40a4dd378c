package lab

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coloctl/coloctl/colo"
)

func TestGrantsFromTheWitnessLog(t *testing.T) {
	g := &Grants{}
	g.follow(strings.NewReader(`{"time":"2026-01-01T00:00:00.000000001Z","msg":"ready"}
{"time":"2026-01-01T00:00:01.000000002Z","msg":"witness answered","op":"advance","record":{"vm":"x","generation":1,"members":["n1"],"by":"n1"}}
not JSON
{"time":"2026-01-01T00:00:02Z","msg":"witness answered","op":"advance","record":{"vm":"x","generation":2,"members":["n1","n2"],"by":"n1"}}
{"time":"2026-01-01T00:00:03Z","msg":"witness answered","op":"advance","record":{"vm":"x","generation":2,"members":["n1","n2"],"by":"n1"}}
`))
	second := time.Date(2026, 1, 1, 0, 0, 1, 2, time.UTC).UnixNano()
	want := []Grant{{At: second, Generation: 1, Members: []string{"n1"}}, {At: second + 1e9 - 2, Generation: 2, Members: []string{"n1", "n2"}}}
	if diff := cmp.Diff(want, g.List()); diff != "" {
		t.Error(diff)
	}
}

func TestGrantsFromEtcd(t *testing.T) {
	record := base64.StdEncoding.EncodeToString([]byte(`{"vm":"x","generation":4,"members":["n2"],"by":"n2"}`))
	l, began := &Lab{Grants: &Grants{}}, make(chan struct{})
	l.readEtcd(json.NewDecoder(strings.NewReader(`{"result":{"created":true}}
{"result":{"events":[{"kv":{"key":"eA==","value":"`+record+`"}},{"type":"DELETE","kv":{"key":"eA=="}}]}}`)), began)
	select {
	case <-began:
	default:
		t.Error("the beginning of the watch was not noticed")
	}
	if got := l.Grants.List(); len(got) != 1 || got[0].Generation != 4 || got[0].Members[0] != "n2" {
		t.Errorf("%+v", got)
	}
}

// A node whose clock is wrong is taken at the machine's time.
func TestJournalShift(t *testing.T) {
	j, at := NewJournal(nil), time.Now()
	j.shift("n1", time.Hour)
	j.add(colo.Event{Node: "n1", Kind: "state", Text: "second", Time: at.Add(time.Hour + time.Second)})
	j.add(colo.Event{Node: "n2", Kind: "state", Text: "first", Time: at})
	j.add(colo.Event{Node: "n2", Kind: "progress", Time: at})
	var texts []string
	for _, e := range j.Since(at) {
		texts = append(texts, e.Text)
	}
	if strings.Join(texts, " ") != "first second" {
		t.Error(texts)
	}
}
