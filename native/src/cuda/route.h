#pragma once

#include "device/api.h"

namespace moepic::device {

int32_t route(const RouteJob& job, Stream stream);
int32_t list_tasks(const TaskListJob& job, Stream stream);

}  // namespace moepic::device
