package importer

import (
	"errors"
	"testing"
	"time"
)

func TestGCRemovesWhatIsOldAndOurs(t *testing.T) {
	m := newMemStore()
	ours := PutOptions{Meta: map[string]string{MetaIdentity: "x"}}
	put := func(key string, p PutOptions) {
		if _, err := m.Put(t.Context(), Object{Bucket: "b", Key: key}, []byte("12345"), p); err != nil {
			t.Fatal(err)
		}
		if _, err := m.CreateUpload(t.Context(), Object{Bucket: "b", Key: key}, p); err != nil {
			t.Fatal(err)
		}
	}
	begun(t, m, randomBytes(1, 3*testPart), 2)
	put("tmp/old", ours)
	put("tmp/theirs", PutOptions{})
	put("other/old", ours)
	m.now = m.now.Add(48 * time.Hour)
	put("tmp/new", ours)

	o := GCOptions{OlderThan: 24 * time.Hour, Now: m.now, Objects: true, DryRun: true}
	for _, dry := range []bool{true, false} {
		o.DryRun = dry
		out, err := GC(t.Context(), patient(m), "b", "tmp/", o)
		if err != nil || len(out) != 3 {
			t.Fatalf("%v, %v", out, err)
		}
		for i, key := range []string{"tmp/old", "tmp/theirs", "tmp/old"} {
			if out[i].Key != key || out[i].Removed == dry || (out[i].UploadID == "") != (i == 2) {
				t.Errorf("%+v", out[i])
			}
		}
		if dry && (len(m.objects) != 4 || len(m.uploads) != 5) {
			t.Error("a dry run removed something")
		}
	}
	if len(m.objects) != 3 || len(m.uploads) != 3 || m.objects[Object{Bucket: "b", Key: "tmp/old"}] != nil {
		t.Errorf("left: %v, %v", m.objects, m.uploads)
	}

	o.Objects = false
	out, err := GC(t.Context(), patient(m), "b", "images/", o)
	if err != nil || len(out) != 1 || out[0].Bytes != 2*testPart || !out[0].Removed {
		t.Errorf("%+v, %v", out, err)
	}
}

func TestGCGoesOnBehindAFailure(t *testing.T) {
	m := newMemStore()
	for _, key := range []string{"a", "b", "c"} {
		if _, err := m.CreateUpload(t.Context(), Object{Bucket: "b", Key: key}, PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	f := &faulty{Store: m}
	f.script = func(op string) fault {
		if op == "Abort" && f.seen[op] == 2 {
			return denied
		}
		return fine
	}
	out, err := GC(t.Context(), patient(f), "b", "", GCOptions{Now: m.now.Add(time.Hour)})
	if _, ok := errors.AsType[*ServiceError](err); !ok || len(out) != 3 || out[1].Removed || !out[2].Removed || len(m.uploads) != 1 {
		t.Errorf("%+v, %v", out, err)
	}
}

func TestGCRefusesToDeleteObjectsOfAWholeBucket(t *testing.T) {
	m := newMemStore()
	if _, err := GC(t.Context(), m, "b", "", GCOptions{Now: m.now, Objects: true}); err == nil {
		t.Error("no error")
	}
}
